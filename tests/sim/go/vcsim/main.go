// Starts govmomi's own simulator on loopback for tests of the vSphere client.
//
// Prints one line of JSON when it listens and runs until its standard input is closed, so that it never
// outlives the test that started it.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

type listening struct {
	URL        string `json:"url"`
	Host       string `json:"host"`
	User       string `json:"user"`
	Password   string `json:"password"`
	SHA1       string `json:"sha1"`
	APIVersion string `json:"apiVersion"`
}

func main() {
	esx := flag.Bool("esx", false, "a stand-alone host instead of a vCenter")
	machines := flag.Int("vm", 2, "number of virtual machines per pool")
	user := flag.String("user", "user", "name to log in with")
	password := flag.String("password", "pass", "password to log in with (a test's, not a secret)")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = *machines
	defer model.Remove()
	if err := model.Create(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, *password)}
	model.Service.TLS = new(tls.Config)
	server := model.Service.NewServer()
	defer server.Close()

	address := *server.URL
	address.User = nil
	out, err := json.Marshal(listening{
		URL:        address.String(),
		Host:       address.Host,
		User:       *user,
		Password:   *password,
		SHA1:       server.CertificateInfo().ThumbprintSHA1,
		APIVersion: model.ServiceContent.About.ApiVersion,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(out))
	_, _ = io.Copy(io.Discard, os.Stdin)
}
