"""When a configuration file counts as changed, and what of it waits for a restart."""

from __future__ import annotations

from pathlib import Path

from gateway.config import Config
from gateway.server.options import ServerOptions
from gateway.server.reloading import FileWatch, restart_needed


def test_a_file_is_told_of_once_a_change_and_may_be_gone_for_a_while(tmp_path: Path) -> None:
    file, told = tmp_path / "c.toml", []
    file.write_text("a")
    watch = FileWatch(lambda: [str(file)], lambda: told.append(file.read_text()))
    watch.look()
    assert told == []
    file.unlink()
    watch.look()
    file.write_text("longer")
    watch.look()
    watch.look()
    assert told == ["longer"]


def test_what_waits_for_a_restart_is_said() -> None:
    config = Config.from_toml(Path(__file__).parents[3] / "config.toml")
    assert restart_needed(ServerOptions(), config.server) == []
    wanted = ServerOptions(port=1, workers=2, admin_key_hash="x")
    assert restart_needed(ServerOptions(), wanted) == ["port", "workers"]
