"""The fault lab: upstreams that fail on cue, a caller that believes nothing, a scorecard."""

from gateway.faultlab.catalogue import runs as runs
from gateway.faultlab.endpoints import Given as Given
from gateway.faultlab.endpoints import Ours as Ours
from gateway.faultlab.scenario import Grade as Grade
from gateway.faultlab.upstream import Lab as Lab
from gateway.faultlab.wall import Result as Result
from gateway.faultlab.wall import wall as wall
