"""The HTTP gateway: other programs search, watch and read alerts; everything travels over the topics, no model and no index is here."""
