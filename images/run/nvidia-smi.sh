#!/bin/sh
# nvidia-smi of a worker whose GPU is simulated: says which GPU it is, in NVIDIA's format, and that it is none.
# labd uploads it to such workers alone.
gpu=${LABD_GPU_UUID:-SIM-0}
if [ $# -eq 0 ]; then
  cat <<END
+-----------------------------------------------------------------------------+
| nvidia-smi of labd        no driver, no CUDA: this lab's GPUs are simulated |
|-----------------------------------------------------------------------------|
| GPU  Name              UUID                                                 |
|=============================================================================|
|   0  Simulated GPU     $(printf '%-53s' "$gpu")|
+-----------------------------------------------------------------------------+
END
  exit 0
fi
case "$#:$1" in
  1:-L | 1:--list-gpus) echo "GPU 0: Simulated GPU (UUID: $gpu)" ;;
  1:-h | 1:--help) echo "usage: nvidia-smi [-L]   (this GPU is simulated by labd)" ;;
  *)
    echo "nvidia-smi: this GPU is simulated by labd and has nothing to show for: $*; use nvidia-smi or nvidia-smi -L" >&2
    exit 2
    ;;
esac
