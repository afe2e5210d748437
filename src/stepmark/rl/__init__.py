"""Reinforcement: a policy learns from what its own attempts earn, watched so that it does not cheat its verifier.

rewards.py      what attempts earn: gold answers, outcome and process verifiers, mixtures; how steps share credit
episodes.py     attempts of the policy as it is now, token by token, and where each step ends
advantages.py   rewards -> a weight for every token (GAE; GRPO with process rewards)
losses.py       clipped policy loss, value loss, divergence from the reference policy
policy.py       the model with its value head, and one pass over attempts
learner.py      one update's learning
guards.py       true accuracy on held-out problems, and what to do when it falls while the reward rises
distance.py     how far a policy has gone from its reference
identity.py     what a training was asked for
loop.py         updates, log, checkpoints: `reinforce`
rft.py          rejection sampling fine-tuning, the simple alternative: `rft`

stepmark run recipes/reinforce_arithmetic.yaml
"""
