"""`bench cost`: what each token pays when the model's memory is across a network, and what makes that price go away.

`matrix` says which points there are, `paced` and `real` measure one, `run` goes over all of them twice, `report` draws.
"""
