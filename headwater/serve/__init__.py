"""The web page of ``headwater serve``: photos in, maps side by side; on top of the public interface alone."""
