"""From a table and a checkpoint to tokens: attention in one place, the looked-up rows in another, HTTP in front.

`engine` computes, `memory` and `transport` bring rows, `app` speaks the OpenAI protocol, `on_ray` deploys them.
"""
