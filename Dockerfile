# An image for workers of Dataflow, Flink and Spark: Beam's own, with this project and the versions that were tested.
#   docker build --tag REGISTRY/patchpack:TAG . && docker push REGISTRY/patchpack:TAG
# Then, behind --: --sdk_container_image REGISTRY/patchpack:TAG (Dataflow), or
# --environment_type DOCKER --environment_config REGISTRY/patchpack:TAG (Flink, Spark).
FROM apache/beam_python3.11_sdk:2.77.0
COPY . /opt/patchpack
RUN pip install --no-cache-dir --constraint /opt/patchpack/constraints.txt "/opt/patchpack[report,heif]"
