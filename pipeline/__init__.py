"""What happens to a frame, a tracklet, a query: decisions only, with numpy, scipy and the standard library."""
