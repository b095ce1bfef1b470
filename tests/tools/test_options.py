"""Options of sampling: their help, types and settings are those that `Sampling` declares."""

from dataclasses import fields

import pytest

from llava_ref.errors import ParameterError
from llava_ref.generation.sampling import Sampling
from llava_ref.tools.options import FLAGS, add_sampling, sampling
from llava_ref.tools.parser import Parser


@pytest.fixture
def parser():
    parser = Parser("llava-ref generate")
    add_sampling(parser)
    return parser


def test_every_option_says_what_the_setting_says(parser):
    declared = {setting.name: setting for setting in fields(Sampling)}
    options = {action.dest: action for action in parser._actions}
    for name, flag in FLAGS.items():
        assert options[name].option_strings == [flag]
        assert options[name].help == declared[name].metadata["does"]
        assert options[name].type is (float if isinstance(declared[name].default, float) else int)
    assert set(options) - set(FLAGS) == {"max_tokens", "logit_bias", "stop"}
    assert set(declared) - set(FLAGS) == {"logit_bias", "grammar", "top_logprobs"}
    assert "lowest id among equals" in " ".join(parser.format_help().split())


def test_what_is_not_given_is_the_default(parser):
    assert sampling(parser.parse_args([])) == Sampling()


def test_every_option_reaches_its_setting(parser):
    given = dict(zip(FLAGS, (0.5, 7, 0.25, 0.125, 1.5, -0.5, 0.75, 3), strict=True))
    words = [word for name, value in given.items() for word in (FLAGS[name], str(value))]
    found = sampling(parser.parse_args([*words, "--logit-bias", "5=-2", "--logit-bias", "6=1.5"]))
    assert found == Sampling(**given, logit_bias={5: -2.0, 6: 1.5})


@pytest.mark.parametrize("pair", ["5", "a=1", "5=", "5=b", "=1"])
def test_a_bias_that_is_no_pair_is_refused(parser, pair):
    with pytest.raises(ParameterError, match="--logit-bias: .*expected ID=BIAS"):
        sampling(parser.parse_args(["--logit-bias", pair]))
