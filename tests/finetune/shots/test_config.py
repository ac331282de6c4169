"""What a configuration asks for, and what it cannot ask for."""

from typing import Any

import pytest
import torch

from finetune.shots.config import FewShotConfig
from finetune.shots.layouts import DOMAINS, ELEVEN
from finetune.shots.run import trainings_of
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError


class TestProtocols:
    def make(self, **values: Any) -> FewShotConfig:
        return from_dict(FewShotConfig, values)

    def test_base_to_novel(self) -> None:
        trainings = trainings_of(self.make())
        assert len(trainings) == 11 * (1 + 3)
        assert [t.seed for t in trainings[:11]] == [None] * 11
        assert {t.source for t in trainings} == set(ELEVEN)
        for training in trainings:
            assert training.part == "base"  # novel classes are never learnt from
            assert training.measured == ((training.source, "base"), (training.source, "novel"))

    @pytest.mark.parametrize(
        ("protocol", "targets"),
        [("cross_dataset", ELEVEN[1:]), ("domain_generalisation", DOMAINS)],
    )
    def test_one_source(self, protocol: str, targets: tuple[str, ...]) -> None:
        trainings = trainings_of(self.make(protocol=protocol, zero_shot=False))
        assert [(t.source, t.part, t.seed) for t in trainings] == [
            ("imagenet", "all", seed) for seed in (1, 2, 3)
        ]
        assert trainings[0].measured == tuple((name, "all") for name in ("imagenet", *targets))

    def test_the_largest_seed_is_one_of_torchs(self) -> None:
        (seed,) = self.make(seeds=[2**63 - 1]).seeds
        torch.Generator().manual_seed(seed)

    def test_imagenet_has_batches_of_its_own(self) -> None:
        config = self.make()
        assert [config.batch_size(name) for name in ("imagenet", "dtd")] == [128, 16]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"seeds": []}, "give at least one"),
            ({"seeds": [1, 1]}, "each once"),
            ({"seeds": [1, 2**65]}, f"seeds has {2**65}; give numbers from 0 to {2**63 - 1}"),
            ({"seeds": [2**63]}, f"seeds has {2**63}"),
            ({"seeds": [-1]}, "seeds has -1"),
            ({"template": "a photo"}, "must hold one {}"),
            ({"template": "{} {}"}, "must hold one {}"),
            ({"template": "{} {x}"}, "must hold one {}"),
            ({"data": {"sets": ["caltech"]}}, "did you mean 'caltech101'"),
            ({"data": {"sets": []}}, "at least one set"),
            ({"data": {"sets": ["dtd", "dtd"]}}, "each once"),
            ({"data": {"sets": ["imagenet_a"]}}, "no training images"),
            ({"data": {"own": {"dtd": {"folder": "x"}}}}, "choose a name"),
            ({"data": {"own": {"../x": {"folder": "x"}}}}, "choose a name"),
            ({"protocol": "cross_dataset", "source": "imagenet_r"}, "no training images"),
            (
                {"protocol": "cross_dataset", "data": {"sets": ["imagenet"]}},
                "source is 'imagenet'",
            ),
            ({"host": {"kind": "wholegrain"}}, "'host.path' is missing"),
            ({"adapter": {"kind": "mma", "rnk": 3}}, "did you mean 'rank'"),
            ({"protocol": "zero"}, "'protocol' is 'zero'"),
        ],
    )
    def test_what_cannot_be(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            from_dict(FewShotConfig, values)
        assert message in str(caught.value)
