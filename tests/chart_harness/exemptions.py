"""Who may break a property, and why; an exemption that is not needed any more fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Exemptions:
    """Exemptions of a chart from the properties it is tested for.

    Args:
        reasons: property name -> {object id -> reason}; ids are those of `Manifest.id`, `Pod.id` or `Container.id`.
    """

    def __init__(self, reasons: Mapping[str, Mapping[str, str]]) -> None:
        for name, subjects in reasons.items():
            for subject, reason in subjects.items():
                if len(reason.split()) < 3:
                    raise ValueError(f"the exemption of {subject} from «{name}» needs a reason")
        self.reasons = reasons

    def check(self, name: str, subject: str, problems: Sequence[str]) -> None:
        """Fail with the problems, unless the subject is exempt; fail when it is exempt and has none.

        Args:
            name: the property.
            subject: id of the object, pod or container.
            problems: what is wrong with it, each as a sentence; empty when nothing is.

        Raises:
            AssertionError: the property does not hold, or the exemption is stale.
        """
        reason = self.reasons.get(name, {}).get(subject)
        if reason is None:
            assert not problems, f"{subject}: {name}\n" + "\n".join(f"  - {problem}" for problem in problems)
        else:
            assert problems, f"{subject} is exempt from «{name}» ({reason}), but has nothing to be excused: remove it"
