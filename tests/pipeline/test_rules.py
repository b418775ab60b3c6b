"""A rule that cannot mean what it says is refused, with the way out; null drops."""

import polars as pl
import pytest

from pipeline.rules import compile_rules
from schemas.errors import DeclarationError
from tests.pipeline.corpora import declare

CLIP = {"clip": {"model": "ViT-B-32", "pretrained": "openai"}}


def test_rules_keep_their_order_and_know_their_columns() -> None:
    declaration = declare(
        select={
            "large": "min_side >= 200 and aspect <= 3",
            "fits": "clip_score > 0.28",
            "always": "1 = 1",
            "spread": "width between 2 and 9 or caption_words in (1, 2)",
            "named": "case when sha256 like 'a%' then true else height % 2 = 0 end",
            "cast": "cast(width as float) / height < 2.5",
        },
        signals=CLIP,
    )
    rules = compile_rules(declaration)
    assert [rule.name for rule in rules] == list(declaration.select)
    assert [rule.columns for rule in rules] == [
        ("aspect", "min_side"),
        ("clip_score",),
        (),
        ("caption_words", "width"),
        ("height", "sha256"),
        ("height", "width"),
    ]


def test_an_unknown_value_drops() -> None:
    (rule,) = compile_rules(declare(select={"large": "width > 3"}))
    frame = pl.DataFrame({"width": [2, None, 4]})
    assert frame.select(rule.expression).to_series().to_list() == [False, False, True]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("min_sid >= 200", "no column `min_sid`; did you mean `min_side`"),
        ("zebra = 1", "no column `zebra`; columns are aspect, bytes, caption_characters"),
        ("clip_score > 0.2", "written by the signal `clip`; declare signals.clip"),
        ("clip_scor > 0.2", r"did you mean `clip_score`\? \(it needs signals.clip\)"),
        ("width >", "cannot be read"),
        ("", "cannot be read"),
        ("width > 3 limit 2", "cannot be read"),
        ("wide(width)", "cannot be read: unsupported function 'wide'"),
        ("width", "gives Int32, not yes or no: .* `width >= 1`"),
        ("width > 'three'", "does not fit its columns"),
        ("sha256 > 3 + 'a'", "does not fit its columns"),
        ("width > (select 1)", "does not fit its columns|looks at other pairs|cannot be read"),
        ("200 < width < 800", "answer of a comparison"),
        ("height = 3 or (width > 3) >= 1", "answer of a comparison"),
        ("width > avg(width)", r"looks at other pairs \(Agg\)"),
        ("count(*) > 1", "looks at other pairs"),
        ("width > avg(cast(height as float))", "looks at other pairs"),
        ("row_number() over (order by width) > 3", "looks at other pairs"),
        ("width > sum(width) over (partition by sha256)", "looks at other pairs"),
        ("rank() over (order by width) > 2", "looks at other pairs"),
        ("lag(width) over (order by height) > 2", "looks at other pairs"),
        ("case when width > max(width) then true else false end", "looks at other pairs"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(rule: str, told: str) -> None:
    with pytest.raises(DeclarationError, match=told) as caught:
        compile_rules(declare(select={"mine": rule}))
    assert "select.mine" in str(caught.value)


@pytest.mark.parametrize("name", ["removed", "decontaminate", "unique"])
def test_the_funnels_own_steps_are_no_rule_names(name: str) -> None:
    with pytest.raises(DeclarationError, match="name the rule otherwise"):
        compile_rules(declare(select={name: "width > 1"}))
