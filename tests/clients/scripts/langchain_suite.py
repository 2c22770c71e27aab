"""langchain-tests' own suite for chat models, run by pytest in the clients' environment.

PART=scripted has an upstream that can do everything, PART=real a small model that calls no tools.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SCRIPTED = os.environ["PART"] == "scripted"


class TestGateway(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {  # noqa: RUF012 - the suite's own way
        "model": "creative",
        "base_url": os.environ["GATEWAY_URL"],
        "api_key": "sk-anything",
        "stream_usage": True,
        "use_responses_api": False,
    }
    has_tool_calling = SCRIPTED
    has_tool_choice = SCRIPTED
    has_structured_output = SCRIPTED
    supports_json_mode = SCRIPTED
    supports_model_override = True
    model_override_value = "qwen-medium" if SCRIPTED else "smollm2-135m"
    returns_usage_metadata = True

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 64, "timeout": 60, "max_retries": 2}
