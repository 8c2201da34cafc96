"""The daemon by itself: what it refuses at its start."""

import pytest

import demo


def start_store(cluster, name, directory, **settings):
    return cluster.start_daemon(name, "store", store__directory=directory,
                                store__control_listen="127.0.0.1:0",
                                store__data_listen="127.0.0.1:0", store__capacity="64MiB",
                                store__segment_size="32MiB", store__prewrite="false", **settings)


def test_a_volume_that_is_not_mounted_is_not_taken_for_an_empty_store(cluster, tmp_path):
    mount_point = tmp_path / "volume"
    mount_point.mkdir()
    for number, directory in enumerate((mount_point, mount_point / "store")):
        with pytest.raises(demo.Failed) as refused:
            start_store(cluster, f"refused{number}", directory, store__create="false")
        assert str(directory) in str(refused.value) and "mounted" in str(refused.value)
        assert "store.create" in str(refused.value)
        assert not list(mount_point.iterdir()), "something was written where the volume belongs"
    # Made once, it opens without being made.
    start_store(cluster, "made", mount_point / "store").process.terminate()
    cluster.processes[-1].wait(timeout=30)
    start_store(cluster, "opened", mount_point / "store", store__create="false")
