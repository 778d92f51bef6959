"""The associative network: how face, body and voice of one person belong together (Wang et al., Listen, Look, and Find the One, 2020)."""
