# The IMAGE of launch/jobset.yaml, and for any machine:
#
#   docker build --build-arg=EXTRA=tpu --tag=IMAGE .       # EXTRA is cpu, cuda13 or tpu
#   docker run --rm --volume="$PWD/runs:/work/runs" IMAGE --config=configs/digits.py
#
# With EXTRA=cuda13 the host needs NVIDIA's driver and container toolkit alone, and docker run
# --gpus=all: the CUDA libraries come with JAX.
FROM python:3.13-slim AS build
WORKDIR /source
RUN pip install --no-cache-dir "build==1.3.0"
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY vae_attn vae_attn
RUN python -m build --wheel --outdir=/wheels

FROM python:3.13-slim
ARG EXTRA=cpu
COPY --from=build /wheels /wheels
RUN case "$EXTRA" in \
      cpu) extras=stream,tensorboard ;; \
      cuda13|tpu) extras=$EXTRA,stream,tensorboard ;; \
      *) echo "EXTRA=$EXTRA must be cpu, cuda13 or tpu" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[$extras]" \
    && rm -r /wheels
# Any folder has the recipes: configs/... is looked up in the package.
WORKDIR /work
ENTRYPOINT ["vae-attn"]
