# normbench on a plain Python image: torch's wheels bring CUDA, so no CUDA base is needed (give the
# container a GPU with `docker run --gpus all`). The compilers serve Triton and torch.compile.
FROM python:3.12-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/normbench

# The dependencies first: their layer (5 GB) is rebuilt only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && python -m pip install --no-cache-dir -c constraints.txt -r requirements.txt

COPY LICENSE README.md ./
COPY normbench normbench
COPY kernels kernels
COPY leaderboard leaderboard
RUN python -m pip install --no-cache-dir --no-deps .

# Records and the site are written to the working directory: mount a folder there to keep them.
RUN useradd --create-home normbench && mkdir /data && chown normbench /data
COPY suites /data/suites
COPY scripts/docker-entrypoint.sh /usr/local/bin/docker-entrypoint
USER normbench
WORKDIR /data
ENTRYPOINT ["docker-entrypoint"]
CMD ["--help"]
