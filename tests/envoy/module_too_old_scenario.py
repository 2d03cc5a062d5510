"""An Envoy that lacks what the module calls refuses it at once, rather than failing at the first request."""

import json
import os
import sys
import unittest

from module_scenario import MODULE, filter_config
from support import ENVOY, Process, Scenario


class TooOld(Scenario):
    def test_it_is_refused_when_it_is_loaded(self):
        os.symlink(os.path.abspath(MODULE), os.path.join(self.folder, os.path.basename(MODULE)))
        router = {"name": "envoy.filters.http.router",
                  "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
        config = filter_config({"pools": [{"name": "default/pool"}]})
        del config["dynamic_module_config"]["metrics_namespace"]
        hcm = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "in", "route_config": {"name": "r"},
               "http_filters": [{"name": "fairway", "typed_config": config}, router]}
        listener = {"name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [{"filters": [{"name": "hcm", "typed_config": hcm}]}]}
        path = os.path.join(self.folder, "envoy.json")
        with open(path, "w") as file:
            json.dump({"static_resources": {"listeners": [listener]}}, file)
        envoy = self.start(Process([ENVOY, "-c", path, "--disable-hot-restart", "--log-level", "warning"],
                                   env={**os.environ, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": self.folder}))
        self.assertNotEqual(envoy.join(), 0)
        # (It says that the file is not found, also where it is and asks for what this Envoy does not have.)
        self.assertIn("Failed to load dynamic module", "\n".join(envoy.err))


if __name__ == "__main__":
    if not ENVOY:
        sys.exit(77)
    unittest.main()
