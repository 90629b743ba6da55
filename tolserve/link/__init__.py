"""The wire between the gateway and the engines of the attention replicas: one frame out of an engine step.

A replica listens, gateways connect; the engine's thread itself writes a step's outputs to the sockets, all of one
gateway as one frame, so that no hand-over and no message a token lies between a sampled token and its client.
"""
