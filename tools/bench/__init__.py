"""Measurements of speed, memory and checks: `python -m tools bench NAME`, see `--help`."""

from tools.bench.case import case
from tools.bench.damaged import flags, missing
from tools.bench.loader import loader
from tools.bench.memory import memory
from tools.bench.preparation import preparation
from tools.bench.registration import registration
from tools.bench.reliability import calibration
