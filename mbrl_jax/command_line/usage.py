"""How the command line is used."""

import sys
from typing import NoReturn

from mbrl_jax.config import presets

USAGE = """usage: mbrl-jax COMMAND …

  train CONFIG --seeds N --out DIR [--seed BASE] [--diagnose] [--any.setting VALUE …]
      train an agent for every seed; CONFIG is a YAML file or the name of a shipped preset
      [--data FILE …] from logged transitions; [--from RUN] with the world model of a finished run as the start
      [--checkpoint-every SECONDS] [--checkpoints K] saves the run as it goes; --resume goes on with one that was stopped
      [--devices all|N] [--memory GB] how many devices and how much memory to use; seeds that do not fit go in batches
      [--engine auto|xla|cuda] cuda: on an NVIDIA GPU a round in one launch, for what its kernels cover; auto: that where it fits
      [--seeds FIRST:END] trains a shard of a run: these seeds of it
      [--launcher slurm|ray --shards N] trains N shards as jobs of a cluster, and joins them
      [--tensorboard] [--wandb PROJECT] also send every round's figures there
      [--record-transitions auto|on|off] also write transitions.parquet, which --data reads; auto: those of the host
  join OUT SHARD [SHARD …]
      make one run of the shards of a run, or one sweep of those of a sweep
  sweep CONFIG --grid PATH=V1,V2,… [--grid PATH=…] --seeds N --out DIR [--seed BASE] [--devices all|N] [--memory GB]
      [--any.other.setting VALUE …] [--resume] [--combinations 0:3,7] [--launcher slurm|ray --shards N]
      train an agent for every seed at every combination of values of some settings, in as few compiled programs as can be;
      --resume trains what an earlier call has left undone
  tune CONFIG --space FILE --trials N --seeds N --out DIR [--batch 64] [--rungs 2] [--factor 3] [--measure final|curve]
      [--sampler tpe|random] [--storage URL --study NAME] [--resume] [--engine auto|xla|cuda] [--devices all|N] [--memory GB]
      [--any.setting VALUE …]
      search for the best settings: trials in batches of one compiled program, pruned on their learning curves (extra `tune`)
  compare --protocol batch|interactive --seeds N --out DIR [--seed BASE] [--resume] [--engine auto|xla|cuda]
      train the model-based and the model-free arm on the same real data, and set them side by side
  runs DIR
      list the runs below a folder: how far they are, in which settings they differ, and what they reached
  report RUN [RUN …] --out FILE.html
      one page about one run or several: what was run, curves, model, imagination, and how the policy moves
  evaluate DIR [--episodes 50] [--env gymnax|gymnasium] [--seed BASE]
      play the policies that a run saved
  export RUN --out DIR [--seed I | --best | --ensemble] [--what policy|model|all] [--format onnx stablehlo torchscript]
      [--int8 dynamic|static]
      write a run's policy and world model for other runtimes, held against the library on real observations (extra `export`)
  serve DIR [--port 8000] [--host 127.0.0.1] [--data FOLDER] [--precision float32|int8-dynamic|int8-static] [--watch SECONDS]
      answer for actions and imagined rollouts over HTTP, keep real transitions, take up new exports (extra `serve`)
  data check FILE [FILE …] [--environment NAME] [--figure FILE.png]
      say what there is in files of logged transitions, and whether training on them could be right: `train CONFIG --data FILE …`
  data collect ENV --transitions N --out FILE.parquet [--policy random|RUN] [--epsilon E] [--seed BASE]
      make such a file
  reference CONFIG --seeds N --out DIR [--seed BASE] [--compile] [--processes N] [--device cpu] [--any.setting VALUE …]
      the same run in plain PyTorch, one seed after another, with the same files as `train` (needs the extra `torch`)

Each command says more with --help; `train CONFIG --help` lists every setting. Presets: {presets}"""


def show_usage(words: list[str]) -> NoReturn:
    """Print how to call the command: as an answer if it was asked for, else as an error."""
    asked = bool(words) and words[0] in ("-h", "--help")
    print(USAGE.format(presets=", ".join(sorted(presets()))), file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)
