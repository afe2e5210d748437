"""The demo's recipe, shrunk to seconds: a real generator that learns how an answer is given, labels and a verifier."""

CHANGES = (
    "generator.problems=400",  # enough to learn how an answer is given, right or wrong
    "generator.init={hidden: 32, layers: 1, heads: 2, kv_heads: 1, vocab: 300, max_length: 256}",
    "generator.train={epochs: 3, lr: 1.0e-2, batch_tokens: 512, tensorboard: false}",
    "sample.train={split: train, problems: 6, n: 2}",
    "sample.test={split: test, problems: 3, n: 2}",
    "sample.max_tokens=100",
    "label.options.rollouts=2",
    "verifiers={prm: {kind: prm, train: {epochs: 1, tensorboard: false}}}",
    "evaluate.n=[1, 2]",
    "workers=1",
)
