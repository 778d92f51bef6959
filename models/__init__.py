"""The networks, their weights and their training: torch, onnxruntime and transformers live here and nowhere else."""
