# One image for every process of the service; compose.yaml says which one a container runs.
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 ryzanstein \
    && mkdir --parents /var/lib/ryzanstein/blobs /var/lib/ryzanstein/keys /var/lib/ryzanstein/flower /models \
    && chown ryzanstein /var/lib/ryzanstein/*

WORKDIR /app
COPY constraints.txt ./
# By far the largest part, and the one that changes least. Options of pip choose another build, one without CUDA say.
ARG TORCH_PIP_OPTIONS=
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_PIP_OPTIONS} torch

COPY pyproject.toml README.md ./
COPY migrations migrations
COPY models models
COPY workers workers
COPY pipeline pipeline
# The compiler is for the CPU kernels, and stays no longer than it takes to build them.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && pip install --no-cache-dir --constraint constraints.txt ".[s3,traces]" \
    && apt-get purge --yes --auto-remove g++ && rm -rf /var/lib/apt/lists/*

USER ryzanstein
WORKDIR /home/ryzanstein
CMD ["ryzanstein", "--help"]
