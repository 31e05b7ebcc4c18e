"""How a KMS fails, in the words of the one error hierarchy.

Three answers must never be confused: the key's owner turned it off (KmsKeyDisabled), the KMS
refuses or does not know what was asked (KmsAccessDenied, KmsKeyInvalid), and there was no answer
(KmsUnavailable). Only the last is worth another try. No message carries what a KMS said, since
that names keys, hosts and principals.
"""

from __future__ import annotations

from services.common.errors import FailedPrecondition, KeyDisabled, Unavailable


class KmsKeyDisabled(KeyDisabled):
    """The account's key is disabled or waits for its deletion, in its own KMS."""

    def __init__(self) -> None:
        FailedPrecondition.__init__(self, "the account's key is disabled in its KMS; enable it there")


class KmsAccessDenied(FailedPrecondition):
    """The KMS does not let keyvault use the key."""

    reason = "KMS_ACCESS_DENIED"

    def __init__(self, message: str = "the KMS denies keyvault the use of the key; grant it there") -> None:
        super().__init__(message)


class KmsKeyInvalid(FailedPrecondition):
    """There is no such key in the KMS, or it is of a kind or in a place that cannot serve."""

    reason = "KMS_KEY_INVALID"

    def __init__(self, message: str = "the account's key is not in its KMS, or not fit for use") -> None:
        super().__init__(message)


class KmsUnavailable(Unavailable):
    """The KMS did not answer, or asked to be left alone for a while.

    `unheard` says that the KMS certainly did nothing, so that even a creation may be tried again.
    """

    reason = "KMS_UNAVAILABLE"

    def __init__(self, *, unheard: bool = False, retry_after_s: float = 1.0) -> None:
        super().__init__(
            "the KMS of the account's key does not answer; try again", retry_after_s=retry_after_s
        )
        self.unheard = unheard


class KmsThrottled(KmsUnavailable):
    """The KMS did nothing, because it is asked too often."""

    def __init__(self, *, retry_after_s: float = 0.0) -> None:
        super().__init__(unheard=True, retry_after_s=retry_after_s)
