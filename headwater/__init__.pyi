from . import (
    composites as composites,
    data as data,
    deployment as deployment,
    errors as errors,
    evaluation as evaluation,
    experiments as experiments,
    explanations as explanations,
    figures as figures,
    heatmaps as heatmaps,
    layers as layers,
    methods as methods,
    metrics as metrics,
    models as models,
    pictures as pictures,
    report as report,
    rules as rules,
    splitting as splitting,
)
from .engine.composites import Composite as Composite
from .engine.presets import list_composites as list_composites
from .engine.presets import load_composite as load_composite
from .engine.presets import register_composite as register_composite
from .engine.registrations import register_rule as register_rule
from .engine.registrations import unregister_rule as unregister_rule
from .deployment import Exported as Exported
from .deployment import export as export
from .data.preprocessing import Preprocessing as Preprocessing
from .errors import HeadwaterError as HeadwaterError
from .evaluation import Settings as Settings
from .evaluation import evaluate as evaluate
from .engine.explanation import Conservation as Conservation
from .engine.explanation import Explanation as Explanation
from .engine.flow import Flow as Flow
from .engine.flow import JoinFlow as JoinFlow
from .heatmaps import c1c as c1c
from .heatmaps import c3 as c3
from .heatmaps import heat_quantization as heat_quantization
from .engine.layer_table import register_layer as register_layer
from .engine.lrp import LRP as LRP
from .methods import list_methods as list_methods
from .methods import load_method as load_method
from .methods import register_method as register_method
from .metrics import InsertionDeletion as InsertionDeletion
from .metrics import insertion_deletion as insertion_deletion
from .models.card import ModelCard as ModelCard
from .models.registry import list_models as list_models
from .models.registry import load_model as load_model
from .explanations import ImageExplanation as ImageExplanation
from .explanations import TextExplanation as TextExplanation
from .explanations import explain as explain
from .explanations import explain_files as explain_files
from .explanations import explain_text as explain_text
from .pictures import picture as picture
from .report.images import Style as Style

__version__: str
