"""A training run of four steps on the smallest network, which tests change as they need."""

from wsigen.training.settings import Phase, TrainSettings

SHORT = TrainSettings(
    architecture="tiny",
    phases=(Phase((32, 64), (4, 2), 4),),
    learning_rate=1e-3,
    warmup_steps=1,
    decay_steps=1,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=4,
)
