# The controllers (`kaito-ctrl run`), the aks provisioner among them. Build from the repository's root:
#   docker build -t kaito-ctrl:dev .
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY examples ./examples
COPY api ./api
COPY provisioner ./provisioner
COPY presets ./presets
COPY kaito_ctrl ./kaito_ctrl
RUN python -m venv /opt/kaito-ctrl \
    && /opt/kaito-ctrl/bin/pip install --no-cache-dir --constraint constraints.txt ".[aks]" \
    && /opt/kaito-ctrl/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim
COPY --from=build /opt/kaito-ctrl /opt/kaito-ctrl
ENV PATH=/opt/kaito-ctrl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Numeric, so that runAsNonRoot can be checked without looking into the image; there is nothing of its own to write to.
USER 10001:10001
EXPOSE 8080 8081 9443
ENTRYPOINT ["kaito-ctrl"]
CMD ["run"]
