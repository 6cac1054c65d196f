//! What a sandbox with a network policy can reach: the connections that the node makes for it.
