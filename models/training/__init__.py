"""Training of the small networks that ship under models/weights."""
