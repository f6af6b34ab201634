# SPDX-License-Identifier: Apache-2.0
"""One code and one sentence for each way in which a call to AWS's APIs can fail.

A sentence names the profile and the thing at fault, quotes the program that failed, and ends with the remedy. It never
contains a key, a secret or a token.
"""

from __future__ import annotations

from .case import APIS, Api, Failure
from .explain import explain

__all__ = ["APIS", "Api", "Failure", "explain"]
