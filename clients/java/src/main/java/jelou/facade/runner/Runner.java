package jelou.facade.runner;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.JsonParser;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.TypeRegistry;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorDetailsProto;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import io.grpc.StatusException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import jelou.facade.client.FacadeChannel;
import jelou.facade.client.Failure;
import jelou.facade.runner.Exchange.Command;
import jelou.facade.runner.Exchange.Ended;
import jelou.facade.runner.Exchange.Reply;
import jelou.facade.runner.Exchange.Tls;
import jelou.facade.v1.BatchServiceGrpc;
import jelou.facade.v1.CapacityServiceGrpc;
import jelou.facade.v1.MessageServiceGrpc;
import jelou.facade.v1.NotificationServiceGrpc;
import jelou.facade.v1.SendServiceGrpc;

/** Carries out the calls of clients/run with the Java client. */
public final class Runner {
  private static final TypeRegistry DETAILS = TypeRegistry.newBuilder().add(ErrorDetailsProto.getDescriptor().getMessageTypes()).build();
  private static final JsonFormat.Parser PARSER = JsonFormat.parser().usingTypeRegistry(DETAILS);
  private static final JsonFormat.Printer PRINTER = JsonFormat.printer().usingTypeRegistry(DETAILS).preservingProtoFieldNames();

  @SuppressWarnings("unchecked") // all of them speak protobuf
  private static final Map<String, MethodDescriptor<Message, Message>> METHODS = Stream.of(
          BatchServiceGrpc.getServiceDescriptor(), CapacityServiceGrpc.getServiceDescriptor(), MessageServiceGrpc.getServiceDescriptor(),
          NotificationServiceGrpc.getServiceDescriptor(), SendServiceGrpc.getServiceDescriptor())
      .map(ServiceDescriptor::getMethods)
      .flatMap(methods -> methods.stream().map(m -> (MethodDescriptor<Message, Message>) m))
      .collect(Collectors.toMap(MethodDescriptor::getFullMethodName, Function.identity()));

  private final PrintStream out = new PrintStream(System.out, true, UTF_8);
  private final Map<Key, ManagedChannel> channels = new HashMap<>();

  /** Commands with the same address and security share a connection. */
  private record Key(String address, Tls tls, boolean bare) {}

  private Runner() {}

  public static void main(String[] args) throws Exception {
    var runner = new Runner();
    var running = Executors.newCachedThreadPool();
    var lines = new BufferedReader(new InputStreamReader(System.in, UTF_8));
    for (var line = lines.readLine(); line != null; line = lines.readLine()) {
      var command = Exchange.JSON.fromJson(line, Command.class);
      running.execute(() -> runner.carryOut(command));
    }
    running.shutdown();
    running.awaitTermination(1, TimeUnit.MINUTES);
    System.exit(0); // channels keep threads
  }

  private void carryOut(Command command) {
    try {
      if (command.repeat() > 0) {
        reply(new Reply(command.id(), null, null, measure(command)));
        return;
      }
      call(command, message -> reply(new Reply(command.id(), JsonParser.parseString(written(message)), null, null)));
      reply(new Reply(command.id(), null, new Ended("OK", null, null, null, null, null, null), null));
    } catch (Exception e) { // a runner never dies of one command
      reply(new Reply(command.id(), null, ended(e), null));
    }
  }

  private void reply(Reply reply) {
    out.println(Exchange.JSON.toJson(reply));
  }

  private static Ended ended(Exception error) {
    var f = Failure.of(error);
    return new Ended(
        f.code().name(), error.getMessage(), f.reason(), f.domain(), f.metadata(), f.fields().stream().map(FieldViolation::getField).toList(),
        f.retryDelay().map(d -> d.toMillis()).orElse(null));
  }

  private synchronized Channel channel(Command command) throws IOException {
    var key = new Key(command.address(), command.tls(), command.bare());
    var channel = channels.get(key);
    if (channel == null) {
      var credentials = credentials(command.tls());
      var builder = command.bare() ? Grpc.newChannelBuilder(command.address(), credentials) : FacadeChannel.builder(command.address(), credentials);
      channel = builder.build();
      channels.put(key, channel);
    }
    var headers = new Metadata();
    command.metadata().forEach((name, value) -> headers.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
    return ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private static ChannelCredentials credentials(Tls tls) throws IOException {
    if (tls == null) {
      return InsecureChannelCredentials.create();
    }
    var builder = TlsChannelCredentials.newBuilder().trustManager(new File(tls.ca()));
    if (tls.cert() != null) {
      builder.keyManager(new File(tls.cert()), new File(tls.key()));
    }
    return builder.build();
  }

  /** Makes one call of any kind and hands its messages over. */
  private void call(Command command, Consumer<Message> received) throws Exception {
    var method = method(command);
    var requests = parse(command, method);
    var channel = channel(command);
    var options = CallOptions.DEFAULT;
    if (command.timeoutMs() > 0) {
      options = options.withDeadlineAfter(command.timeoutMs(), TimeUnit.MILLISECONDS);
    }
    switch (method.getType()) {
      case UNARY -> received.accept(ClientCalls.blockingV2UnaryCall(channel, method, options, requests.get(0)));
      case SERVER_STREAMING -> receive(command, ClientCalls.blockingV2ServerStreamingCall(channel, method, options, requests.get(0)), received);
      case BIDI_STREAMING -> {
        var stream = ClientCalls.blockingBidiStreamingCall(channel, method, options);
        upload(command, stream, requests);
        receive(command, stream, received);
      }
      default -> throw new IllegalArgumentException("the API has no " + method.getType());
    }
  }

  private static void upload(Command command, BlockingClientCall<Message, Message> stream, List<Message> requests) throws InterruptedException {
    try {
      for (var request : requests) {
        stream.write(request);
      }
      if (!command.keepOpen()) {
        stream.halfClose();
      }
    } catch (StatusException e) {
      // The stream has ended: what reads says why.
    }
  }

  private static void receive(Command command, BlockingClientCall<Message, Message> stream, Consumer<Message> received) throws Exception {
    var seen = new HashMap<String, Integer>();
    for (var message = stream.read(); message != null; message = stream.read()) {
      received.accept(message);
      message.getAllFields().keySet().stream().map(FieldDescriptor::getName).forEach(kind -> seen.merge(kind, 1, Integer::sum));
      var wanted = command.cancelAfter();
      if (!wanted.isEmpty() && wanted.entrySet().stream().allMatch(w -> seen.getOrDefault(w.getKey(), 0) >= w.getValue())) {
        stream.cancel("cancelled by the caller", null);
      }
    }
  }

  private static MethodDescriptor<Message, Message> method(Command command) {
    var method = METHODS.get(command.rpc());
    if (method == null) {
      throw new IllegalArgumentException("no RPC is called " + command.rpc());
    }
    return method;
  }

  private static List<Message> parse(Command command, MethodDescriptor<Message, Message> method) throws InvalidProtocolBufferException {
    var kind = ((PrototypeMarshaller<Message>) method.getRequestMarshaller()).getMessagePrototype();
    var requests = new ArrayList<Message>();
    for (var text : command.requests()) {
      var builder = kind.newBuilderForType();
      PARSER.merge(text.toString(), builder);
      requests.add(builder.build());
    }
    return requests;
  }

  private static String written(Message message) {
    try {
      return PRINTER.print(message);
    } catch (InvalidProtocolBufferException e) {
      throw new IllegalArgumentException(e);
    }
  }

  /** Repeats a unary call, with its requests in turn, and returns how many seconds all took. */
  private double measure(Command command) throws Exception {
    var method = method(command);
    var requests = parse(command, method);
    var channel = channel(command);
    Callable<Void> calls = () -> {
      for (int i = 0; i < command.repeat() / command.concurrency(); i++) {
        ClientCalls.blockingV2UnaryCall(channel, method, CallOptions.DEFAULT, requests.get(i % requests.size()));
      }
      return null;
    };
    var threads = Executors.newFixedThreadPool(command.concurrency());
    try {
      var start = System.nanoTime();
      for (var done : threads.invokeAll(Collections.nCopies(command.concurrency(), calls))) {
        done.get();
      }
      return (System.nanoTime() - start) / 1e9;
    } finally {
      threads.shutdown();
    }
  }
}
