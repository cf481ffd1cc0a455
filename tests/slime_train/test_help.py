from slime_core.config.arguments import parse
from slime_train.help import USAGE
from slime_train.sources import all_flags, slime_flags


def test_the_flags_of_which_not_only_the_last_counts_are_named():
    collecting = [flag.names[0] for flag in slime_flags() if flag.spelling.get("repeat")]
    words = USAGE.split("Of equal flags")[1].replace(".", "").split()
    assert [word for word in words if word.startswith("--")] == collecting
    given = parse(["--prompt-data", "a", "--prompt-data", "b"], all_flags()).given
    assert [item.value for item in given.values()] == [("a", "b")]
