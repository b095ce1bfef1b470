"""Explain stages that exceed their bounds by known quirks: one alone, or the fewest of a profile that do it jointly."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from llava_ref.profiles import PROFILES, QUIRKS, Quirks

TOGETHER = " --quirk "
"""Stands between quirks of one explanation, so that `--quirk` before it makes arguments of the command of all."""
Problems = Callable[[Mapping[str, str]], set[str]]
"""Return the stages that exceed their bounds with these quirks changed."""


def explain(problems: Problems, bad: Sequence[str], quirks: Quirks) -> dict[str, tuple[str, ...]]:
    """Return {stage of `bad`: explanations}. Each alone brings the stage within its bound and takes no other out of its
    own: NAME=VALUE, or several of these joined by `TOGETHER` where none does it alone."""
    explained: dict[str, tuple[str, ...]] = {stage: () for stage in bad}
    for changed in _alone(bad, quirks):
        for stage in _mended(problems, bad, changed):
            explained[stage] = (*explained[stage], _named(changed))
    for changed in _sets([stage for stage in bad if not explained[stage]], quirks):
        for stage in [stage for stage in _mended(problems, bad, changed) if not explained[stage]]:
            fewest = _fewest(problems, bad, stage, changed)
            for other in _mended(problems, bad, fewest):
                explained[other] = explained[other] or (_named(fewest),)
    return explained


def _mended(problems: Problems, bad: Sequence[str], changed: Mapping[str, str]) -> list[str]:
    """Return the stages of `bad` that a change brings within their bounds; none if it takes another out of its own."""
    after = problems(changed)
    return [] if after - set(bad) else [stage for stage in bad if stage not in after]


def _alone(bad: Sequence[str], quirks: Quirks) -> Iterator[dict[str, str]]:
    """Yield each other value of every quirk that shows in one of the stages."""
    for name, quirk in QUIRKS.items():
        if any(stage.startswith(quirk.seen_in) for stage in bad):
            yield from ({name: value} for value in quirk.values if value != getattr(quirks, name))


def _sets(stages: Sequence[str], quirks: Quirks) -> list[dict[str, str]]:
    """Return for each stage and profile the profile's values of all quirks that show in the stage, two at least."""
    found: list[dict[str, str]] = []
    for stage in stages:
        for profile in PROFILES.values():
            seen = [name for name, quirk in QUIRKS.items() if stage.startswith(quirk.seen_in)]
            changed = {name: getattr(profile, name) for name in seen if getattr(profile, name) != getattr(quirks, name)}
            if len(changed) > 1 and changed not in found:
                found.append(changed)
    return found


def _fewest(problems: Problems, bad: Sequence[str], stage: str, changed: Mapping[str, str]) -> dict[str, str]:
    """Leave out the changes that a stage does not need."""
    needed = dict(changed)
    for name in changed:
        fewer = {other: value for other, value in needed.items() if other != name}
        if fewer and stage in _mended(problems, bad, fewer):
            needed = fewer
    return needed


def _named(changed: Mapping[str, str]) -> str:
    return TOGETHER.join(f"{name}={value}" for name, value in changed.items())
