"""Where captions come from: a model in this process, servers, or a cluster."""
