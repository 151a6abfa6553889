# One image for every process of the service; compose.yaml says which one a container runs.
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 ryzanstein \
    && mkdir --parents /var/lib/ryzanstein/blobs /models \
    && chown ryzanstein /var/lib/ryzanstein/blobs

WORKDIR /app
COPY constraints.txt ./
# By far the largest part, and the one that changes least. https://download.pytorch.org/whl/cpu has it without CUDA.
ARG TORCH_INDEX_URL=https://pypi.org/simple
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://pypi.org/simple --index-url "${TORCH_INDEX_URL}" torch

COPY pyproject.toml README.md ./
COPY migrations migrations
COPY models models
COPY workers workers
COPY pipeline pipeline
RUN pip install --no-cache-dir --constraint constraints.txt ".[s3]"

USER ryzanstein
WORKDIR /home/ryzanstein
CMD ["ryzanstein", "--help"]
