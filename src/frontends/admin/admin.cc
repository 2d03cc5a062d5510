#include "frontends/admin/admin.h"

#include <string_view>
#include <utility>

#include "base/strings.h"

namespace fairway::admin {

namespace {

net::HttpResponse Text(int status, std::string body) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(body) + "\n"};
}

// "127.0.0.1:9090", "[::1]:9090", "[::ffff:127.0.0.1]:9090": who is inside this machine or Pod already.
bool IsLoopback(std::string_view address) {
  return address.starts_with("127.") || address.starts_with("[::1]") || address.starts_with("[::ffff:127.");
}

bool IsHealth(std::string_view path) { return path == "/healthz" || path == "/livez" || path == "/readyz"; }

// "" when there is none.
std::string BearerToken(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  if (header.size() <= kScheme.size() || base::ToLower(header.substr(0, kScheme.size())) != kScheme)
    return "";
  return std::string(base::Trim(header.substr(kScheme.size())));
}

net::HttpResponse Refusal(int status) {
  if (status == 403) return Text(403, "the bearer of this token may not get this path");
  if (status != 401) return Text(503, "the API server cannot be asked who may read this");
  net::HttpResponse response = Text(401, "a bearer token is needed that the API server knows");
  response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

constexpr std::string_view kPages = "pages: /metrics /healthz /readyz /debug/fleet /debug/decisions";

}  // namespace

net::HttpResponse Answer(const net::HttpRequest& request, const Content& content) {
  const std::string_view path = request.path();
  if (request.method != "GET" && request.method != "HEAD") {
    net::HttpResponse response = Text(405, "only GET");
    response.headers.emplace_back("allow", "GET, HEAD");
    return response;
  }
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = content.registry->Render()};
  }
  if (path == "/healthz" || path == "/livez") return Text(200, "ok");
  if (path == "/readyz") {
    return !content.ready || content.ready() ? Text(200, "ok")
                                             : Text(503, "no pool is known yet, or the server is draining");
  }
  if (path == "/debug/fleet" && content.fleet) return {.body = content.fleet()};
  if (path == "/debug/decisions") {
    if (content.decisions) return {.body = content.decisions()};
    return Text(404, "decisions are not kept: start with --debug-decisions N to see the last N here");
  }
  if (path == "/debug/pprof" || path.starts_with("/debug/pprof/")) {
    return Text(
        404, "there are no pprof pages: take a profile of the running process with `perf record -g -p PID`");
  }
  if (path == "/") return Text(200, std::string(kPages));
  return Text(404, "no such page; " + std::string(kPages));
}

void Serve(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder,
           const std::shared_ptr<const Content>& content) {
  if (!content->authorize || IsLoopback(request.local_address) || IsHealth(request.path())) {
    return responder->Send(Answer(request, *content));
  }
  const std::string token = BearerToken(request.header("authorization"));
  if (token.empty()) return responder->Send(Refusal(401));
  content->authorize(token, std::string(request.path()), [request, responder, content](int status) {
    responder->Send(status == 200 ? Answer(request, *content) : Refusal(status));
  });
}

base::Result<std::unique_ptr<AdminServer>> AdminServer::Listen(const Options& options, Content content,
                                                               net::Loop& loop, const base::Log& log) {
  FAIRWAY_CHECK(content.registry != nullptr);
  net::HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.max_body = 64u << 10;
  http.max_connections = 256;
  auto server = net::HttpServer::Listen(
      std::move(http), loop,
      [content = std::make_shared<const Content>(std::move(content))](
          const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
        Serve(request, responder, content);
      },
      log);
  if (!server) return tl::make_unexpected(server.error());
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(*server)));
}

}  // namespace fairway::admin
