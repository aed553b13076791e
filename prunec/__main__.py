"""``python -m prunec``: the same as the ``prunec`` script, for launchers that want a module (torchrun -m prunec)."""

from prunec.cli.main import run

if __name__ == "__main__":
    run()
