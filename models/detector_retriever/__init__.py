"""The one-stage detector-retriever: one forward pass finds people and what they look like, for any number of descriptions.

Parents: FastPR (MM '22: grid attention, proxy tasks, the cell that holds the centre is responsible) and SDRPN (channel gates on shared
features, an ID-Net on region features, OIM, cross-modal projection, cross-scale alignment). ``base`` to ``losses`` need torch (training,
GPU); ``runtime`` and ``words`` need onnxruntime and numpy alone.
"""
