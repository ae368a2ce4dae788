# A server on CPUs.
#
#     docker build -f docker/cpu.Dockerfile -t sdzoo .
#     docker run --rm --init --shm-size 1g -p 8000:8000 -v "$PWD:/models:ro" sdzoo MODEL.onnx [options of sdzoo serve]
#
# All ports but 8000 stay inside the container. Give the container as many CPUs as --replicas times --cpus.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
RUN python -m venv --without-pip /opt/sdzoo
# torch and torchvision without the CUDA libraries of their usual wheels
RUN pip --python /opt/sdzoo install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY sdzoo sdzoo
RUN pip --python /opt/sdzoo install --no-cache-dir ".[cpu,serve]"

FROM python:${PYTHON}
# KubeRay's probes call wget, and its login shell finds ray only on the system's path
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && ln -s /opt/sdzoo/bin/ray /usr/local/bin/ray \
    && useradd --create-home --uid 10001 sdzoo
COPY --from=build /opt/sdzoo /opt/sdzoo
ENV PATH=/opt/sdzoo/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["sdzoo", "serve", "--host", "0.0.0.0", "--port", "8000"]
