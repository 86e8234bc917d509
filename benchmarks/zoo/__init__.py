"""The classifiers and segmentation networks of ``transformers``, small and with random weights, explained."""
