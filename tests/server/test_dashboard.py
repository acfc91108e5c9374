"""The Grafana dashboard asks for metrics and labels that a server has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, model_of, serving, wait_until

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


def metrics_of_a_server_with_a_shadow() -> str:
    model, shadow = model_of(HashEngine(VOCAB_SIZE)), model_of(HashEngine(VOCAB_SIZE))
    body = {"prompt": "Hi", "max_tokens": 3, "temperature": 0}
    with serving(lambda: model, shadow, shadow_share=1.0) as client:
        wait_until(lambda: client.get("/health").status_code == 200)

        def is_compared() -> bool:
            client.post("/v1/completions", json=body)
            text = client.get("/metrics").text
            return re.search(r"sgate:shadow_edit_distance_count [1-9]", text) is not None

        wait_until(is_compared)
        return client.get("/metrics").text


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            yield target["expr"]


def test_every_query_names_metrics_and_labels_of_a_server() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    labels = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(metrics_of_a_server_with_a_shadow())
        for sample in family.samples
    }
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    found = list(queries(dashboard))
    for query in found:
        names = re.findall(r"(?:vllm|sgate):\w+", query)
        assert names and set(names) <= labels.keys(), query
        used = set(re.findall(r"(\w+)=~?\"", query))
        for listed in re.findall(r"by \(([\w, ]+)\)", query):
            used |= set(listed.split(", "))
        assert all(used <= labels[name] for name in names), query
        assert set(re.findall(r"\$(\w+)", query)) <= variables | {"__rate_interval"}
    assert len(set(found)) == len(found) > 20
