"""A real HTTP server that fails on cue: `ScriptedUpstream`, and all it can play: `FAULTS`."""

from gateway.simulator.scripted.bad import cut_at_byte as cut_at_byte
from gateway.simulator.scripted.catalogue import FAULTS as FAULTS
from gateway.simulator.scripted.catalogue import SEQUENCES as SEQUENCES
from gateway.simulator.scripted.exchange import Exchange as Exchange
from gateway.simulator.scripted.exchange import answer_tokens as answer_tokens
from gateway.simulator.scripted.fault import ScriptedFault as ScriptedFault
from gateway.simulator.scripted.server import ModelStats as ModelStats
from gateway.simulator.scripted.server import ScriptedUpstream as ScriptedUpstream
