# Sluice as an image. For CPUs:
#
#   docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD) --tag sluice:0.1.0 .
#
# For NVIDIA GPUs (the driver's libraries come from the host; the image has no more of CUDA than the program):
#
#   docker build --build-arg BUILD_BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg BASE=ubuntu:24.04 \
#                --build-arg PRESET=cuda --tag sluice:0.1.0-cuda .
#
# The program runs without a shell, as user 65532, on a read-only root. Two builds from the same sources on the same base
# differ in nothing but time stamps: tests/image builds both.
ARG BASE=debian:12-slim
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
WORKDIR /src
# A layer of its own: packages stay as they are while only sources change.
COPY scripts/common.sh scripts/
RUN bash -c 'source scripts/common.sh; need_for_build; install_missing'
COPY . .
ARG PRESET=release
# With a commit that the sources do not have with them (.dockerignore).
ARG COMMIT=unknown
RUN cmake --preset "${PRESET}" -DSLUICE_COMMIT="${COMMIT}" -DSLUICE_TESTS=OFF -DSLUICE_BENCH=OFF \
    && bash -c 'source scripts/common.sh; build "$0" sluice' "${PRESET}" \
    && scripts/image_files.sh "build/${PRESET}/sluice" /out

FROM ${BASE}
ARG BASE
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="GGUF language models as a gRPC service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /out /opt/sluice
COPY LICENSE /opt/sluice/LICENSE
# Nothing of which GPUs are seen: that is for `docker run --gpus` or the device plugin to say. "All" here would give them to
# every container on a node whose runtime is NVIDIA's.
ENV PATH=/opt/sluice:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 50051 9090 9091
ENTRYPOINT ["/opt/sluice/sluice"]
CMD ["--help"]
