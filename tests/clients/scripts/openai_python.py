"""openai-python, 2.x and 3.x: everything a program does with it, sync and async."""

from __future__ import annotations

import openai_answers  # noqa: F401 - importing it enters its scenarios, in this order
import openai_errors  # noqa: F401
import openai_manners  # noqa: F401
import openai_routes  # noqa: F401 - last: then a mode rests
from facts import play_all

play_all()
