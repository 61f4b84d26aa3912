package jelou.facade.runner;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** What clients/exchange says: commands in, replies out, one JSON object a line. */
final class Exchange {
  static final Gson JSON = new GsonBuilder().setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES).disableHtmlEscaping().create();

  private Exchange() {}

  record Command(
      int id, String address, Tls tls, String rpc, List<JsonElement> requests, boolean keepOpen, Map<String, Integer> cancelAfter,
      long timeoutMs, Map<String, String> metadata, boolean bare, int repeat, int concurrency) {
    Command {
      requests = Objects.requireNonNullElse(requests, List.of());
      cancelAfter = Objects.requireNonNullElse(cancelAfter, Map.of());
      metadata = Objects.requireNonNullElse(metadata, Map.of());
    }
  }

  /** Names of PEM files; those of the client's own are null where it has none. */
  record Tls(String ca, String cert, String key) {}

  /** A message, how a call ended, or how long a repeated one took. */
  record Reply(int id, JsonElement message, Ended status, Double seconds) {}

  record Ended(
      String code, String message, String reason, String domain, Map<String, String> metadata, List<String> fields, Long retryDelayMs) {}
}
