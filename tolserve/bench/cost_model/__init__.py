"""What a decode step with networked memory takes, from a description of the hardware or from micro-benchmarks of it.

`timeline` is the model: bands that start when the one before has ended and their rows are there, a host beside the
device. Everything else gives it its numbers: `hits` how many rows a step has to fetch, `arrivals` when they come,
`pace` what a layer takes on a device, `hardware` and `profiles` devices, links and stores. `calibrate` measures
arrivals and the host's work here, `check` compares with the paced engine, `answers` asks about machines that are not
here: `python -m tolserve.bench.cost_model`.
"""
