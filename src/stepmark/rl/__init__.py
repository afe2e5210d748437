"""Reinforcement learning of a policy from rewards for its own attempts, with guards against over-optimisation.

rewards.py      rewards of attempts: gold answers, outcome and process verifiers, mixtures; credit of the steps
episodes.py     sampling of attempts with the current weights, as token ids with the position where each step ends
advantages.py   rewards -> an advantage for every token (GAE; GRPO with process rewards)
losses.py       clipped policy loss, value loss, KL divergence from the reference policy
policy.py       the model with its value head, and a forward pass over attempts
learner.py      the learning of one update
guards.py       the tests for a fall of the true accuracy on held-out problems, and for a collapse of the attempts
distance.py     the KL divergence of a policy from its reference
identity.py     the description of a run's inputs, by which a later call is recognised
loop.py         the updates, log and checkpoints: `reinforce`
rft.py          rejection sampling fine-tuning, the simple alternative: `rft`

stepmark run recipes/reinforce_arithmetic.yaml
"""
