import pytest
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig, ShapingConfig
from slime_core.config.checked import check_section
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (AdvantageConfig, {"gamma": 1.5}, r"AdvantageConfig.gamma must be >= 0 and <= 1, got 1.5"),
        (AdvantageConfig, {"gamma": float("nan")}, "AdvantageConfig.gamma must be .*, got nan"),
        (ShapingConfig, {"overlong_buffer_len": 0}, "overlong_buffer_len must be >= 1, got 0"),
        (PolicyLossConfig, {"eps_clip_c": 1.0}, "eps_clip_c must be > 1, got 1.0"),
        (OffPolicyConfig, {"tis_clip": -1.0}, "OffPolicyConfig.tis_clip must be > 0, got -1.0"),
    ],
)
def test_a_number_out_of_range_is_refused_where_it_is_given(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_all_wrong_fields_are_named_at_once_with_what_may_have_been_meant():
    config = PolicyLossConfig()
    object.__setattr__(config, "kl_loss_type", "k4")
    object.__setattr__(config, "policy_surrogate", "clipp")
    with pytest.raises(ConfigError) as error:
        check_section(config)
    assert str(error.value).split("; ") == [
        "PolicyLossConfig.policy_surrogate must be one of clip, cispo, gspo, sapo, "
        "got 'clipp' (did you mean clip?)",
        "PolicyLossConfig.kl_loss_type must be one of k1, k2, k3, low_var_kl, got 'k4'",
    ]


def test_what_is_left_out_is_fine():
    assert OffPolicyConfig(rs_lower_bound=None).rs_lower_bound is None
