import io.pyroscope.http.Format;
import io.pyroscope.javaagent.EventType;
import io.pyroscope.javaagent.PyroscopeAgent;
import io.pyroscope.javaagent.Snapshot;
import io.pyroscope.javaagent.api.Exporter;
import io.pyroscope.javaagent.api.Logger;
import io.pyroscope.javaagent.config.Config;
import io.pyroscope.javaagent.impl.DefaultLogger;
import io.pyroscope.javaagent.impl.PyroscopeExporter;
import io.pyroscope.javaagent.impl.QueuedExporter;
import io.pyroscope.labels.v2.LabelsSet;
import io.pyroscope.labels.v2.Pyroscope;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.Phaser;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * A small Java service profiled by the real Pyroscope SDK.
 *
 * It burns CPU and allocates for SDK_SECONDS while the SDK uploads to PYROSCOPE_SERVER_ADDRESS, then stops the SDK and
 * leaves with 0. The SDK logs to stderr; a line with [ERROR] is a failed upload. Judging the uploads is the work of
 * whoever listens at the address.
 */
public final class Client {
    /** The SDK sets no lower bound, but waits at least two seconds before the first upload. */
    private static final Duration UPLOAD_INTERVAL = Duration.ofSeconds(1);

    /** Longer than one export may take: the SDK's own limit for a call is 10 s. */
    private static final Duration DRAIN_MAX = Duration.ofSeconds(15);

    private static final byte[][] KEPT = new byte[64][];

    public static void main(String[] args) throws Exception {
        String address = System.getenv("PYROSCOPE_SERVER_ADDRESS");
        if (address == null || address.isEmpty()) {
            refuse("PYROSCOPE_SERVER_ADDRESS is not set");
        }
        long seconds = runSeconds();
        Config config = new Config.Builder()
            .setApplicationName("sdk.java")
            .setServerAddress(address)
            .setLabels(Map.of("region", "eu", "lang", "java"))
            .setProfilingEvent(EventType.ITIMER)
            .setProfilingAlloc("512k")
            .setFormat(Format.JFR)
            .setUploadInterval(UPLOAD_INTERVAL)
            .setLogLevel(Logger.Level.DEBUG)
            .build();
        Logger logger = new DefaultLogger(Logger.Level.DEBUG, System.err);
        PyroscopeAgent.start(new PyroscopeAgent.Options.Builder(config)
            .setLogger(logger)
            .setExporter(new DrainingExporter(config, logger))
            .build());
        long deadlineNanos = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (System.nanoTime() < deadlineNanos) {
            // A label that comes and goes adds the part "labels" to the upload. The context is opened anew every
            // few milliseconds, since an upload forgets the contexts that were closed before it.
            Pyroscope.LabelsWrapper.run(new LabelsSet("step", "hash"), Client::work);
        }
        PyroscopeAgent.stop();
    }

    /** Keeps one thread busy for some milliseconds and a megabyte alive. */
    private static void work() {
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException impossible) {
            throw new AssertionError("every Java platform has SHA-256", impossible);
        }
        for (int round = 0; round < 256; round++) {
            byte[] block = new byte[16 << 10];
            byte[] sum = digest.digest(block);
            System.arraycopy(sum, 0, block, 0, sum.length);
            KEPT[round % KEPT.length] = block;
        }
    }

    private static long runSeconds() {
        String text = System.getenv().getOrDefault("SDK_SECONDS", "25");
        if (!text.matches("[1-9][0-9]{0,8}")) {
            refuse("SDK_SECONDS=\"" + text + "\" is not a whole number of seconds from 1");
        }
        return Long.parseLong(text);
    }

    private static void refuse(String why) {
        System.err.println("[ERROR] " + why);
        System.exit(2);
    }

    /**
     * The SDK's own queue and uploader, with an end that waits for both. Left alone the SDK interrupts the upload under
     * way when it stops and logs that as an error, so a clean run could not be told from a failed one.
     */
    private static final class DrainingExporter implements Exporter {
        /** One party for the owner and one per snapshot that is queued or under way. */
        private final Phaser pending = new Phaser(1);
        private final Logger logger;
        private final Exporter queue;

        DrainingExporter(Config config, Logger logger) {
            this.logger = logger;
            Exporter uploader = new PyroscopeExporter(config, logger);
            this.queue = new QueuedExporter(config, new Exporter() {
                @Override
                public void export(Snapshot snapshot) {
                    try {
                        uploader.export(snapshot);
                    } finally {
                        pending.arriveAndDeregister();
                    }
                }

                @Override
                public void stop() {
                    uploader.stop();
                }
            }, logger);
        }

        @Override
        public void export(Snapshot snapshot) {
            pending.register();
            queue.export(snapshot);
        }

        @Override
        public void stop() {
            try {
                pending.awaitAdvanceInterruptibly(pending.arrive(), DRAIN_MAX.toMillis(), TimeUnit.MILLISECONDS);
            } catch (InterruptedException | TimeoutException late) {
                logger.log(Logger.Level.ERROR, "uploads still under way after %d s", DRAIN_MAX.toSeconds());
            }
            queue.stop();
        }
    }
}
