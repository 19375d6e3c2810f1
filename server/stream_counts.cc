#include "server/stream_counts.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace sluice::server {
namespace {

using nlohmann::json;

// Calls for which it is worth to look at the connections, which costs about a tenth of a call each.
constexpr int64_t kCallsPerLook = 128;
constexpr int kSocketsPerPage = 500;

// What the library answers, which it allocates; null when it knows no such thing.
using Text = std::unique_ptr<char, void (*)(void*)>;
Text Own(char* text) { return Text(text, gpr_free); }

json Take(char* answer) {
  const Text text = Own(answer);
  json object = text == nullptr ? json() : json::parse(answer, nullptr, /*allow_exceptions=*/false);
  return object.is_object() ? object : json::object();
}

json Part(const json& object, const char* name) { return object.value(name, json::object()); }

// Numbers are strings in the JSON of protobuf, and left out when they are 0.
int64_t Number(const json& object, const char* name) {
  return std::strtoll(object.value(name, "0").c_str(), nullptr, 10);
}

// Every entry of a list that comes in pages: `read` gives the page that begins at an id, `take` has
// an entry and says its id.
template <typename Read, typename Each>
void ForEach(const char* list, Read read, Each take) {
  int64_t next = 0;
  while (true) {
    const json page = Take(read(next));
    const auto entries = page.find(list);
    if (entries == page.end() || entries->empty()) return;
    for (const json& entry : *entries) next = take(entry) + 1;
    if (page.contains("end")) return;
  }
}

}  // namespace

StreamCounts::StreamCounts() {
  ForEach("server", grpc_channelz_get_servers,
          [this](const json& server) { return server_ = Number(Part(server, "ref"), "serverId"); });
}

// Asked for a hundred times a second, so it is not parsed.
int64_t StreamCounts::CallsBegun() const {
  constexpr std::string_view kName = "\"callsStarted\":\"";
  const Text server = Own(grpc_channelz_get_server(server_));
  const char* number = server == nullptr ? nullptr : std::strstr(server.get(), kName.data());
  return number == nullptr ? 0 : std::strtoll(number + kName.size(), nullptr, 10);
}

bool StreamCounts::Busy() const {
  const auto many = std::max(kCallsPerLook, static_cast<int64_t>(num_connections_ / 2));
  return CallsBegun() - calls_then_ >= many;
}

std::vector<StreamCount> StreamCounts::Read() {
  calls_then_ = CallsBegun();
  std::vector<StreamCount> counts;
  const auto page = [this](int64_t first) {
    return grpc_channelz_get_server_sockets(server_, first, kSocketsPerPage);
  };
  ForEach("socketRef", page, [&counts](const json& reference) {
    const int64_t id = Number(reference, "socketId");
    const json facts = Part(Part(Take(grpc_channelz_get_socket(id)), "socket"), "data");
    // "chttp2 ipv4:127.0.0.1:50051"
    const std::string name = reference.value("name", "");
    counts.push_back({id, name.substr(name.find(' ') + 1), Number(facts, "streamsStarted"),
                      Number(facts, "streamsSucceeded"), Number(facts, "streamsFailed")});
    return id;
  });
  num_connections_ = counts.size();
  return counts;
}

}  // namespace sluice::server
