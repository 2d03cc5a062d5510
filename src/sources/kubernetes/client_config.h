// Where the API server is and who we are to it: from a kubeconfig file, or as a Pod finds it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace fairway::sources::kubernetes {

// Texts are PEM; a file is read anew whenever a connection is opened (token: with each request), so what is
// rotated is followed.
struct ClientConfig {
  std::string host;  // name or IP address, IPv6 without brackets
  uint16_t port = 443;
  bool tls = true;
  std::string path_prefix;  // "" or "/k8s/clusters/c-1": servers behind a proxy
  std::string server_name;  // whose certificate it must be; "": host
  bool insecure = false;
  std::string ca_pem, ca_file;
  std::string cert_pem, cert_file;
  std::string key_pem, key_file;
  std::string token, token_file;
  std::string namespace_name;  // of the context or the Pod; "" when none is said
  std::string source;          // for messages: the file's name or "in-cluster"
};

// The context `context`, or the current one where that is "". What cannot be used (exec plugins, auth
// providers, proxies) is an error that says so.
base::Result<ClientConfig> ReadKubeConfig(const std::string& path, const std::string& context = "");
// Several files as one, as kubectl merges those of $KUBECONFIG: of current-context, and of clusters, users
// and contexts by name, the first file that has it counts, and the whole entry is that file's. Paths in an
// entry are relative to its file. Files that are not there are passed over, as long as one is.
base::Result<ClientConfig> ReadKubeConfigs(const std::vector<std::string>& paths,
                                           const std::string& context = "");

inline constexpr const char* kServiceAccountFolder = "/var/run/secrets/kubernetes.io/serviceaccount";

// As every Pod has it: KUBERNETES_SERVICE_HOST and _PORT, and the service account's folder.
base::Result<ClientConfig> InClusterConfig(const std::string& host, const std::string& port,
                                           const std::string& folder = kServiceAccountFolder);

// In the order of the reference's client library: `flag` (--kubeconfig), $KUBECONFIG (one file or several),
// in-cluster, ~/.kube/config. Reads the environment and files. The error says what was looked for.
base::Result<ClientConfig> FindClientConfig(const std::string& flag);

}  // namespace fairway::sources::kubernetes
